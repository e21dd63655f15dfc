"""Docker's JSON to and from `engine.model`: pure functions, no I/O, no engine.

`structs` are the request bodies; `create`, `mounts`, `ports` and `limits` decode and validate them with
dockerd's messages; `inspect`, `listing`, `image` and `stats` encode answers; `filters` are the query
language of the lists.
"""
