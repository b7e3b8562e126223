"""`ltxkit serve`: a queue on disk, one worker process per device, and the HTTP interfaces over both.

Nothing here is imported by nodes or by the core, and starlette, uvicorn and SQLite are imported by nothing else.
"""
