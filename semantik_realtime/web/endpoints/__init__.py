"""Routes: WebSocket, server-sent events and plain HTTP."""
