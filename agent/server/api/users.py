"""People, sessions and tokens: `users/…`, and the login page's one-time links."""

from __future__ import annotations

import re
from typing import Literal
from uuid import UUID, uuid4

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.server.api.workspace_models import ORGANIZATION
from agent.server.auth import COOKIE, Passwords, UserPrincipal, hash_secret, new_key
from agent.server.errors import ApiError, ErrorBody, Validation, forbidden, hidden, invalid
from agent.server.http import Call, no_content, reply
from agent.server.routes import EMPTY, Auth, Route
from agent.server.store import Database, Session, users
from agent.server.store.schema import ApiKey, OneTimeLogin, User
from agent.server.store.users import TakenError
from agent.server.wire import ZERO_TIME, Body, Time, parse_uuid, rfc3339

MIN_PASSWORD, MAX_PASSWORD = 8, 256
DEFAULT_TOKEN_LIFETIME = 30 * 86400 * 10**9
MAX_TOKEN_LIFETIME = 100 * 365 * 86400 * 10**9
LOGIN_RATE = 60
SECOND = 1_000_000
_USERNAME = re.compile(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_TOKEN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Role(msgspec.Struct):
    name: str
    display_name: str


class UserAnswer(msgspec.Struct, kw_only=True):
    id: UUID
    username: str
    avatar_url: str = ""
    name: str
    email: str
    created_at: Time
    updated_at: Time
    last_seen_at: Time
    status: str = "active"
    login_type: str
    organization_ids: list[UUID]
    roles: list[Role]


class UserList(msgspec.Struct, kw_only=True):
    users: list[UserAnswer]
    count: int


class KeyAnswer(msgspec.Struct, kw_only=True):
    """A session or token. `lifetime_seconds` is what it was made with."""

    id: str
    user_id: UUID
    last_used: Time
    expires_at: Time
    created_at: Time
    updated_at: Time
    login_type: str
    scope: str = "all"
    token_name: str
    lifetime_seconds: int


class NewKeyAnswer(msgspec.Struct, kw_only=True):
    """The token, shown this once."""

    key: str


class SessionAnswer(msgspec.Struct, kw_only=True):
    session_token: str


class FirstUserAnswer(msgspec.Struct, kw_only=True):
    user_id: UUID
    organization_id: UUID


class LinkAnswer(msgspec.Struct, kw_only=True):
    """`url` logs a browser in, once."""

    url: str
    expires_at: Time


class NewUser(Body):
    """`role` matters only where an owner makes the user; the first user is an owner."""

    required = ("username", "email", "password")

    username: str = ""
    email: str = ""
    name: str = ""
    password: str = ""
    role: Literal["", "owner", "member"] = ""


class Login(Body):
    required = ("email", "password")

    email: str = ""
    password: str = ""


class NewPassword(Body):
    """`old_password` is needed where a user changes the own one."""

    required = ("password",)

    password: str = ""
    old_password: str = ""


class TokenRequest(Body):
    """`lifetime` is in nanoseconds; 0: thirty days."""

    token_name: str = ""
    lifetime: int = 0


class Users:
    """Handlers. `{user}` is a name, an id, or `me`; members reach only themselves."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        clock: Clock,
        *,
        access_url: str,
        session_lifetime: float,
        link_lifetime: float,
    ) -> None:
        self._database, self._passwords, self._clock = database, passwords, clock
        self._access_url = access_url
        self._session_lifetime = round(session_lifetime * SECOND)
        self._link_lifetime = round(link_lifetime * SECOND)

    def routes(self) -> list[Route]:
        base, user = "/api/v2/users", "/api/v2/users/{user}"
        return [
            Route(
                method="GET",
                path=f"{base}/first",
                handler=self.has_first,
                summary="Whether there is a user yet",
                auth=Auth.NONE,
                responses={200: ErrorBody},
            ),
            Route(
                method="POST",
                path=f"{base}/first",
                handler=self.create_first,
                summary="Create the first user, an owner",
                auth=Auth.NONE,
                request=NewUser,
                responses={201: FirstUserAnswer},
                rate_limit=LOGIN_RATE,
            ),
            Route(
                method="POST",
                path=f"{base}/login",
                handler=self.login,
                summary="A session for an e-mail address and password",
                auth=Auth.NONE,
                request=Login,
                responses={201: SessionAnswer},
                rate_limit=LOGIN_RATE,
            ),
            Route(
                method="POST",
                path=f"{base}/logout",
                handler=self.logout,
                summary="End this session",
                responses={200: ErrorBody},
            ),
            Route(
                method="GET",
                path=base,
                handler=self.list,
                summary="All users",
                owner_only=True,
                responses={200: UserList},
            ),
            Route(
                method="POST",
                path=base,
                handler=self.create,
                summary="Create a user",
                owner_only=True,
                request=NewUser,
                responses={201: UserAnswer},
            ),
            Route(method="GET", path=user, handler=self.show, summary="One user", responses={200: UserAnswer}),
            Route(
                method="DELETE",
                path=user,
                handler=self.delete,
                summary="Delete a user who has no agents",
                owner_only=True,
                responses={200: ErrorBody},
            ),
            Route(
                method="PUT",
                path=f"{user}/password",
                handler=self.set_password,
                summary="Change a password; ends the user's sessions",
                request=NewPassword,
                responses={204: EMPTY},
                rate_limit=LOGIN_RATE,
            ),
            Route(
                method="POST",
                path=f"{user}/login-links",
                handler=self.create_link,
                summary="A link that logs a browser in, once",
                responses={201: LinkAnswer},
            ),
            Route(
                method="POST",
                path=f"{user}/keys",
                handler=self.create_session,
                summary="Another session for oneself",
                responses={201: NewKeyAnswer},
            ),
            Route(
                method="GET",
                path=f"{user}/keys/tokens",
                handler=self.tokens,
                summary="The user's tokens",
                responses={200: list[KeyAnswer]},
            ),
            Route(
                method="POST",
                path=f"{user}/keys/tokens",
                handler=self.create_token,
                summary="Create a token for programs",
                request=TokenRequest,
                responses={201: NewKeyAnswer},
            ),
            Route(
                method="GET",
                path=f"{user}/keys/{{key}}",
                handler=self.key,
                summary="One key, by id, or a token by name",
                responses={200: KeyAnswer},
            ),
            Route(
                method="DELETE",
                path=f"{user}/keys/{{key}}",
                handler=self.delete_key,
                summary="Delete a session or token",
                responses={204: EMPTY},
            ),
        ]

    async def has_first(self, _call: Call) -> web.Response:
        async with self._database.reading() as session:
            if await users.count(session) == 0:
                raise ApiError(404, "The initial user has not been created!")
        return reply(ErrorBody("The initial user has already been created!"))

    async def create_first(self, call: Call) -> web.Response:
        asked = await call.body(NewUser)
        already = ApiError(409, "The initial user has already been created.")
        async with self._database.reading() as session:
            if await users.count(session) > 0:
                raise already
        user = await self._new_user(asked, "owner")
        async with self._database.transaction(exclusive=True) as session:
            if await users.count(session) > 0:
                raise already
            await _add(session, user)
        return reply(FirstUserAnswer(user_id=user.id, organization_id=ORGANIZATION), 201)

    async def login(self, call: Call) -> web.Response:
        asked = await call.body(Login)
        token = await self.log_in(asked.email, asked.password)
        response = reply(SessionAnswer(session_token=token), 201)
        self.set_cookie(response, token)
        return response

    async def log_in(self, email: str, password: str) -> str:
        """The token of a new session. Raises `ApiError` 401."""
        async with self._database.reading() as session:
            user = await users.by_email(session, email)
        hashed = user.password_hash if user else None
        if not await self._passwords.verify(hashed, password[: MAX_PASSWORD + 1]) or user is None:
            raise ApiError(401, "Incorrect email or password.")
        return await self._new_session(user.id)

    async def logout(self, call: Call) -> web.Response:
        async with self._database.transaction() as session:
            await users.remove_key(session, call.user.key_id)
        response = reply(ErrorBody("Logged out!"))
        response.del_cookie(COOKIE)
        return response

    async def list(self, _call: Call) -> web.Response:
        async with self._database.reading() as session:
            found = await users.all_users(session)
        return reply(UserList(users=[_answer(user) for user in found], count=len(found)))

    async def create(self, call: Call) -> web.Response:
        asked = await call.body(NewUser)
        user = await self._new_user(asked, asked.role or "member")
        async with self._database.transaction() as session:
            await _add(session, user)
        return reply(_answer(user), 201)

    async def show(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            return reply(_answer(await find_user(session, call)))

    async def delete(self, call: Call) -> web.Response:
        async with self._database.transaction() as session:
            user = await find_user(session, call)
            if user.id == call.user.id:
                raise ApiError(403, "You cannot delete yourself!")
            if await users.owns_workspaces(session, user.id):
                raise ApiError(
                    409, "You cannot delete a user that has workspaces. Delete their workspaces and try again!"
                )
            await users.remove(session, user.id)
        return reply(ErrorBody("User has been deleted!"))

    async def set_password(self, call: Call) -> web.Response:
        asked = await call.body(NewPassword)
        async with self._database.reading() as session:
            user = await find_user(session, call)
        _check_password(asked.password)
        if (
            user.id == call.user.id
            and user.password_hash is not None
            and not await self._passwords.verify(user.password_hash, asked.old_password[: MAX_PASSWORD + 1])
        ):
            raise invalid(Validation("old_password", "Old password is incorrect."))
        hashed = await self._passwords.hash(asked.password)
        async with self._database.transaction() as session:
            await users.set_password(session, user.id, hashed, self._now())
        return no_content()

    async def create_link(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            user = await find_user(session, call)
        if user.id != call.user.id:
            raise forbidden()
        return reply(await self.new_link(user.id), 201)

    async def new_link(self, user_id: UUID) -> LinkAnswer:
        """A login link for the user."""
        code = new_key().token
        expires = self._now() + self._link_lifetime
        async with self._database.transaction() as session:
            await users.add_login(
                session, OneTimeLogin(code_hash=hash_secret(code), user_id=user_id, expires_at=expires)
            )
        return LinkAnswer(url=f"{self._access_url}/login?code={code}", expires_at=rfc3339(expires))

    async def redeem_link(self, code: str) -> str | None:
        """The session token that a login link gives; None when it was used before or is too old."""
        async with self._database.transaction() as session:
            user = await users.redeem_login(session, hash_secret(code), self._now())
        return None if user is None else await self._new_session(user.id)

    async def create_session(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            user = await find_user(session, call)
        if user.id != call.user.id:
            raise forbidden()
        return reply(NewKeyAnswer(key=await self._new_session(user.id)), 201)

    async def tokens(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            user = await find_user(session, call)
            found = await users.keys(session, user.id, "token")
        return reply([_key(key) for key in found])

    async def create_token(self, call: Call) -> web.Response:
        asked = await call.body(TokenRequest)
        if asked.token_name and _TOKEN_NAME.fullmatch(asked.token_name) is None:
            raise invalid(Validation("token_name", "May have letters, digits, '.', '_' and '-', at most 64."))
        if not 0 <= asked.lifetime <= MAX_TOKEN_LIFETIME:
            raise invalid(Validation("lifetime", f"Must be from 0 to {MAX_TOKEN_LIFETIME} nanoseconds."))
        lifetime = (asked.lifetime or DEFAULT_TOKEN_LIFETIME) // 1000
        async with self._database.reading() as session:
            user = await find_user(session, call)
        if user.id != call.user.id:
            raise forbidden()
        return reply(NewKeyAnswer(key=await self._add_key(user.id, "token", asked.token_name, lifetime)), 201)

    async def key(self, call: Call) -> web.Response:
        async with self._database.reading() as session:
            return reply(_key(await _find_key(session, call)))

    async def delete_key(self, call: Call) -> web.Response:
        async with self._database.transaction() as session:
            key = await _find_key(session, call)
            await users.remove_key(session, key.id)
        return no_content()

    async def _new_user(self, asked: NewUser, role: str) -> User:
        mistakes = []
        if len(asked.username) > 32 or _USERNAME.fullmatch(asked.username) is None or asked.username.lower() == "me":
            mistakes.append(
                Validation(
                    "username", "Must be of letters, digits and single hyphens, at most 32 characters, not 'me'."
                )
            )
        if len(asked.email) > 254 or _EMAIL.fullmatch(asked.email) is None:
            mistakes.append(Validation("email", "Must be an e-mail address."))
        if len(asked.name) > 128:
            mistakes.append(Validation("name", "Must have at most 128 characters."))
        if mistakes:
            raise invalid(*mistakes)
        _check_password(asked.password)
        now = self._now()
        return User(
            id=uuid4(),
            username=asked.username,
            email=asked.email,
            name=asked.name,
            password_hash=await self._passwords.hash(asked.password),
            role=role,
            created_at=now,
            updated_at=now,
        )

    async def _new_session(self, user_id: UUID) -> str:
        return await self._add_key(user_id, "password", "", self._session_lifetime)

    async def _add_key(self, user_id: UUID, login_type: str, name: str, lifetime: int) -> str:
        """`lifetime` is in microseconds."""
        made, now = new_key(), self._now()
        key = ApiKey(
            id=made.id,
            user_id=user_id,
            secret_hash=made.secret_hash,
            login_type=login_type,
            name=name,
            created_at=now,
            updated_at=now,
            last_used_at=now,
            expires_at=now + lifetime,
            lifetime_seconds=lifetime // SECOND,
        )
        try:
            async with self._database.transaction() as session:
                await users.remove_expired(session, now)
                await users.add_key(session, key)
        except TakenError as error:
            raise ApiError(409, f'A token with name "{name}" already exists.') from error
        return made.token

    def set_cookie(self, response: web.StreamResponse, token: str) -> None:
        """Scripts do not see it, other sites do not send it along when they change something."""
        response.set_cookie(
            COOKIE,
            token,
            max_age=self._session_lifetime // SECOND,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=self._access_url.startswith("https://"),
        )

    def _now(self) -> int:
        return self._clock.wall() // 1000


async def find_user(session: Session, call: Call) -> User:
    """The user that the path names. Raises `ApiError` 404, also where a member asks for somebody else."""
    name, caller = call.path("user"), call.user
    if name == "me":
        user = await users.by_id(session, caller.id)
    else:
        try:
            user = await users.by_id(session, parse_uuid(name))
        except ValueError:
            user = await users.by_username(session, name)
    if user is None or not _may_see(caller, user):
        raise hidden()
    return user


def _may_see(caller: UserPrincipal, user: User) -> bool:
    return caller.is_owner or caller.id == user.id


async def _find_key(session: Session, call: Call) -> ApiKey:
    user = await find_user(session, call)
    key = await users.find_key(session, user.id, call.path("key"))
    if key is None:
        raise hidden()
    return key


async def _add(session: Session, user: User) -> None:
    try:
        await users.add(session, user)
    except TakenError as error:
        raise ApiError(
            409,
            "User already exists.",
            validations=[Validation(str(error), "This value is already in use and should be unique.")],
        ) from error


def _check_password(password: str) -> None:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise invalid(Validation("password", f"Must have {MIN_PASSWORD} to {MAX_PASSWORD} characters."))


def _answer(user: User) -> UserAnswer:
    return UserAnswer(
        id=user.id,
        username=user.username,
        name=user.name,
        email=user.email,
        created_at=rfc3339(user.created_at),
        updated_at=rfc3339(user.updated_at),
        last_seen_at=ZERO_TIME if user.last_seen_at is None else rfc3339(user.last_seen_at),
        login_type="none" if user.password_hash is None else "password",
        organization_ids=[ORGANIZATION],
        roles=[Role("owner", "Owner")] if user.role == "owner" else [],
    )


def _key(key: ApiKey) -> KeyAnswer:
    return KeyAnswer(
        id=key.id,
        user_id=key.user_id,
        last_used=rfc3339(key.last_used_at),
        expires_at=rfc3339(key.expires_at),
        created_at=rfc3339(key.created_at),
        updated_at=rfc3339(key.updated_at),
        login_type=key.login_type,
        token_name=key.name,
        lifetime_seconds=key.lifetime_seconds,
    )
