"""People, their keys, and one-time logins."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from agent.server.store.schema import ApiKey, OneTimeLogin, User, Workspace


class TakenError(ValueError):
    """Another row has the name already; the text names the field."""


async def count(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(User)) or 0


async def all_users(session: AsyncSession) -> Sequence[User]:
    """By name."""
    return (await session.scalars(select(User).order_by(User.username))).all()


async def by_id(session: AsyncSession, user_id: UUID) -> User | None:
    return await session.get(User, user_id)


async def by_username(session: AsyncSession, username: str) -> User | None:
    return await session.scalar(select(User).where(User.username == username.lower()))


async def by_email(session: AsyncSession, email: str) -> User | None:
    return await session.scalar(select(User).where(User.email == email.lower()))


async def add(session: AsyncSession, user: User) -> None:
    """Raises `TakenError`. Names and addresses are kept in lower case, so that they are unique however written."""
    user.username, user.email = user.username.lower(), user.email.lower()
    for field, column in (("username", User.username), ("email", User.email)):
        if await session.scalar(select(exists().where(column == getattr(user, field)))):
            raise TakenError(field)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError as error:  # somebody was faster
        raise TakenError("username") from error


async def owns_workspaces(session: AsyncSession, user_id: UUID) -> bool:
    query = select(exists().where(Workspace.owner_id == user_id, ~Workspace.deleted))
    return bool(await session.scalar(query))


async def remove(session: AsyncSession, user_id: UUID) -> None:
    await session.execute(delete(User).where(User.id == user_id))


async def set_password(session: AsyncSession, user_id: UUID, password_hash: str, now: int) -> None:
    """Also ends all sessions of the user; tokens stay."""
    await session.execute(update(User).where(User.id == user_id).values(password_hash=password_hash, updated_at=now))
    await session.execute(delete(ApiKey).where(ApiKey.user_id == user_id, ApiKey.login_type == "password"))
    await session.execute(delete(OneTimeLogin).where(OneTimeLogin.user_id == user_id))


# Keys


async def key_with_user(session: AsyncSession, key_id: str) -> tuple[ApiKey, User] | None:
    row = (
        await session.execute(select(ApiKey, User).join(User, User.id == ApiKey.user_id).where(ApiKey.id == key_id))
    ).one_or_none()
    return None if row is None else (row[0], row[1])


async def keys(session: AsyncSession, user_id: UUID, login_type: str) -> Sequence[ApiKey]:
    """Oldest first."""
    query = select(ApiKey).where(ApiKey.user_id == user_id, ApiKey.login_type == login_type)
    return (await session.scalars(query.order_by(ApiKey.created_at, ApiKey.id))).all()


async def find_key(session: AsyncSession, user_id: UUID, id_or_name: str) -> ApiKey | None:
    """A key of this user by its id, or a token by its name."""
    query = select(ApiKey).where(ApiKey.user_id == user_id, (ApiKey.id == id_or_name) | (ApiKey.name == id_or_name))
    return (await session.scalars(query.where(ApiKey.id != "").limit(1))).first() if id_or_name else None


async def add_key(session: AsyncSession, key: ApiKey) -> None:
    """Raises `TakenError` when the user has a token of that name."""
    if key.name and await session.scalar(
        select(exists().where(ApiKey.user_id == key.user_id, ApiKey.name == key.name))
    ):
        raise TakenError("token_name")
    session.add(key)
    try:
        await session.flush()
    except IntegrityError as error:
        raise TakenError("token_name") from error


async def remove_key(session: AsyncSession, key_id: str) -> None:
    await session.execute(delete(ApiKey).where(ApiKey.id == key_id))


async def touch(session: AsyncSession, key: ApiKey, now: int, expires_at: int) -> None:
    """The key, and with it the user, was just seen."""
    await session.execute(
        update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now, updated_at=now, expires_at=expires_at)
    )
    await session.execute(update(User).where(User.id == key.user_id).values(last_seen_at=now))


async def remove_expired(session: AsyncSession, now: int) -> None:
    for table in (ApiKey, OneTimeLogin):
        await session.execute(delete(table).where(table.expires_at < now))


# One-time logins


async def add_login(session: AsyncSession, login: OneTimeLogin) -> None:
    session.add(login)
    await session.flush()


async def redeem_login(session: AsyncSession, code_hash: bytes, now: int) -> User | None:
    """Whose link this is, if it was neither used nor too late. The link is used up, also by a second caller at once."""
    query = (
        delete(OneTimeLogin)
        .where(OneTimeLogin.code_hash == code_hash)
        .returning(OneTimeLogin.user_id, OneTimeLogin.expires_at)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None or row.expires_at < now:
        return None
    return await session.get(User, row.user_id)
