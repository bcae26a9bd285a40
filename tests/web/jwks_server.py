"""A real HTTP server with public keys, which counts its requests, and can hang and fail."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def rsa_token(key: Any = KEY, algorithm: str = "RS256", kid: str = "k1", **claims: Any) -> str:
    claims = {"sub": "7", "exp": time.time() + 60, **claims}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})


class JwksServer:
    """Serves ``keys`` until `close`."""

    def __init__(self) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {"k1": KEY}
        """The keys by their ids; may be changed."""
        self.body: bytes | None = None
        """Answered instead of the keys."""
        self.requests = 0
        self.may_answer = threading.Event()
        """Cleared: each request hangs until it is set."""
        self.may_answer.set()
        owner = self

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests += 1
                owner.may_answer.wait(30)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(owner._document())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys"

    def close(self) -> None:
        """End the server; its port refuses connections then."""
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _document(self) -> bytes:
        if self.body is not None:
            return self.body
        keys = [
            {
                **json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())),
                "kid": name,
                "use": "sig",
                "alg": "RS256",
            }
            for name, key in self.keys.items()
        ]
        return json.dumps({"keys": keys}).encode()
