"""Who looks at the operator's page: sessions by cookie, a second secret against forged requests, where pages come from.

What is special: three checks that fail apart. The Host header must be ours (a name that an attacker points at
127.0.0.1 is not), the Origin must be this host, and what changes anything carries the session's CSRF token.
"""

import secrets
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from real_robot.serve import auth

COOKIE = "graspline_session"
MAX_SESSIONS = 64


class Sessions:
    """Sessions of one dashboard.

    Args:
        token: what a login shows; None lets everybody in who can reach the address.
        hosts: names under which the page may be called, without ports.
    """

    def __init__(self, token: str | None, hosts: frozenset[str]) -> None:
        self._token, self._hosts = token, hosts
        self._csrf: OrderedDict[str, str] = OrderedDict()  # by session, oldest first

    @property
    def open(self) -> bool:
        """No token is needed."""
        return self._token is None

    def login(self, token: str) -> str | None:
        """A new session's identifier, or None for a wrong token."""
        if self._token is not None and not auth.same_token(token, self._token):
            return None
        session = secrets.token_urlsafe(32)
        self._csrf[session] = secrets.token_urlsafe(32)
        while len(self._csrf) > MAX_SESSIONS:
            self._csrf.popitem(last=False)
        return session

    def csrf(self, connection: HTTPConnection) -> str | None:
        """The CSRF token of a connection's session; None without one."""
        return self._csrf.get(connection.cookies.get(COOKIE, ""))

    def at_home(self, connection: HTTPConnection) -> bool:
        """Called by one of our names."""
        return (urlsplit(f"//{connection.headers.get('host', '')}").hostname or "") in self._hosts

    def from_here(self, connection: HTTPConnection, *, needed: bool = False) -> bool:
        """Not sent by another site's page. `needed`: by a browser, so the Origin has to be there."""
        origin = connection.headers.get("origin")
        if origin is None:
            return not needed
        return urlsplit(origin).netloc == connection.headers.get("host")

    def shows_csrf(self, connection: HTTPConnection, shown: str) -> bool:
        csrf = self.csrf(connection)
        return csrf is not None and auth.same_token(shown, csrf)
