"""Who is who: keys and their files, allow-lists, and what each party may do. No socket."""
