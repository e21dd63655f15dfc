"""A small HTTP/1.1 server for local APIs: asyncio over h11, with hijacking.

`messages` is what handlers see, `connection` drives one client, `router` finds the handler,
`server` listens on a Unix socket. Why not a framework: design.md, "Docker API server".
"""
