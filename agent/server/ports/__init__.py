"""Ports of a workspace in the browser: what listens there, on an origin of its own.

Who means harm, and what is done about it. What runs in a workspace is taken for hostile to the control plane and to
other workspaces; so is every other page in the browser.

- *It wants the session.* Its origin is never the control plane's. `coder_session_token`, tickets and passes are taken
  out of what it is sent, and it can neither set them nor clear them (`headers`). A pass is HttpOnly, and good for one
  origin, agent, port and key of a user.
- *It wants to act as the user at the control plane.* Its requests carry another Origin, which the control plane refuses
  for whatever changes something and for WebSockets; what it reads there, CORS keeps from it.
- *A foreign page wants to act on the port.* The pass is SameSite=Lax; a foreign Origin is refused for unsafe methods
  and WebSockets; frames of foreign pages are refused. Pages of other ports count as foreign.
- *Somebody finds the address.* Without a pass nothing is dialled. A ticket is good once, for a minute. Each request
  asks the database whether the key, the user and the agent are still there, and long ones ask again every 30 s.
- *Another name for the address* (DNS rebinding): a Host that is not the origin's is refused.
- *It stays when its address goes to another port.* A socket's number comes back some day. On such origins there are no
  service workers, which would see the next one's tickets, and who enters begins with empty stores and caches, where the
  browser takes the address for a safe one (it does for this machine's own).
- *What remains.* Cookies know no ports. Without a wildcard host, scripts of workspaces can set cookies for the control
  plane's host where the two share it (not read the session's): somebody can be logged in as another user by that, and
  ports see each other's own cookies. The same holds for a wildcard host below the control plane's own domain.
"""

from agent.server.ports.access import PortAccess, open_access
from agent.server.ports.listeners import ListenerOrigins
from agent.server.ports.origins import Origin, OriginsUnavailableError, PortOrigins, WildcardOrigins
from agent.server.ports.proxy import PortProxy, by_host, leave_as_is

__all__ = [
    "ListenerOrigins",
    "Origin",
    "OriginsUnavailableError",
    "PortAccess",
    "PortOrigins",
    "PortProxy",
    "WildcardOrigins",
    "by_host",
    "leave_as_is",
    "open_access",
]
