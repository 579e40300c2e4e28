"""What is said between client, broker and trunk: sans-I/O, without torch or sockets."""
