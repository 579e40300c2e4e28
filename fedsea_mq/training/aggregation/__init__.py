"""The aggregator of a run as a pure core: frames and times in, actions out.

`core` takes frames and results, `course` takes each attempt at a round through the parties on top
of `training.rounds`; `members` holds the clients' sessions, `duties` says what each is to do, and
`secure_stages` takes a secure round from stage to stage. What comes out is in `actions` and
`reports`. No socket, no clock; what costs time or touches tensors and files is an action, whose
result comes back as a call.
"""
