"""Flatbuffer tables as plain dicts, by a schema that is data.

A schema maps a table's name to its fields, in the order of the format's own definition. A field is `(name, type)`; a type is

- a scalar: "byte", "int", "uint", "float", "bool",
- "string", or "[ubyte]" (bytes; any length, aligned to 16),
- the name of another table,
- any of these in a list: "[float]", "[string]", "[TensorMetadata]",
- a union of tables as a tuple of their names: it takes two places in the format (which one, and the table), and its value
  is `(table's name, dict)`.
"""

from collections.abc import Mapping

import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table

_SCALARS = {
    "byte": number_types.Int8Flags,
    "int": number_types.Int32Flags,
    "uint": number_types.Uint32Flags,
    "float": number_types.Float32Flags,
    "bool": number_types.BoolFlags,
}
_BYTES = "[ubyte]"

Schema = Mapping[str, tuple[tuple[str, object], ...]]


def pack_table(schema: Schema, root: str, value: dict, identifier: bytes) -> bytes:
    """A dict as a flatbuffer.

    Args:
        schema: the tables.
        root: name of the outermost table.
        value: its fields; a field that is left out or None has the format's default.
        identifier: the format's four letters.

    Raises:
        ValueError: a field the table does not have.
    """
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(schema, root, value, builder), identifier)
    return bytes(builder.Output())


def _write(schema: Schema, name: str, value: dict, builder) -> int:
    fields = schema[name]
    unknown = set(value) - {field for field, _ in fields}
    if unknown:
        raise ValueError(
            f"{name} has no field {sorted(unknown)[0]!r}: expected {', '.join(field for field, _ in fields)}."
        )
    slots, places = [], 0  # (place in the table, how to write it, what)
    for field, kind in fields:
        given = value.get(field)
        place, places = places, places + (2 if isinstance(kind, tuple) else 1)
        if given is None:
            continue
        if isinstance(kind, tuple):
            member, content = given
            slots.append((place, number_types.Uint8Flags, kind.index(member) + 1))
            slots.append((place + 1, None, _write(schema, member, content, builder)))
        elif kind in _SCALARS:
            slots.append((place, _SCALARS[kind], given))
        else:
            slots.append((place, None, _write_reference(schema, kind, given, builder)))
    builder.StartObject(places)
    for place, scalar, content in slots:
        if scalar is None:
            builder.PrependUOffsetTRelativeSlot(place, content, 0)
        else:
            builder.PrependSlot(scalar, place, content, None)
    return builder.EndObject()


def _write_reference(schema: Schema, kind: str, value, builder) -> int:
    """What stands elsewhere and is pointed to: a string, bytes, a table or a list."""
    if kind == "string":
        return builder.CreateString(value)
    if kind == _BYTES:
        builder.StartVector(1, len(value), 16)
        builder.head = builder.head - len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value
        return builder.EndVector()
    if not kind.startswith("["):
        return _write(schema, kind, value, builder)
    item = kind[1:-1]
    if item in _SCALARS:
        size = _SCALARS[item].bytewidth
        builder.StartVector(size, len(value), size)
        for each in reversed(value):
            builder.Prepend(_SCALARS[item], each)
        return builder.EndVector()
    references = [_write_reference(schema, item, each, builder) for each in value]
    builder.StartVector(4, len(references), 4)
    for reference in reversed(references):
        builder.PrependUOffsetTRelative(reference)
    return builder.EndVector()


def unpack_table(schema: Schema, root: str, content: bytes, identifier: bytes) -> dict:
    """A flatbuffer as a dict; fields at the format's default are left out.

    Raises:
        ValueError: another format, or damaged.
    """
    if content[4:8] != identifier:
        raise ValueError(f"{root} begins with {bytes(content[4:8])!r}: expected {identifier!r}.")
    try:
        start = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
        return _read(schema, root, Table(bytearray(content), start))
    except Exception as error:  # offsets that lead nowhere end in struct's, Unicode's and other errors
        raise ValueError(f"{root} is damaged ({error}).") from error


def _read(schema: Schema, name: str, table: Table) -> dict:
    found, place = {}, 0
    for field, kind in schema[name]:
        offset = table.Offset(4 + 2 * place)
        place += 2 if isinstance(kind, tuple) else 1
        if not offset:
            continue
        if isinstance(kind, tuple):
            which = table.Get(number_types.Uint8Flags, offset + table.Pos)
            offset = table.Offset(4 + 2 * (place - 1))
            if 0 < which <= len(kind) and offset:
                member = kind[which - 1]
                found[field] = member, _read(schema, member, Table(table.Bytes, table.Indirect(table.Pos + offset)))
        elif kind in _SCALARS:
            found[field] = table.Get(_SCALARS[kind], offset + table.Pos)
        else:
            found[field] = _read_reference(schema, kind, table, offset)
    return found


def _read_reference(schema: Schema, kind: str, table: Table, offset: int):
    if kind == "string":
        return table.String(table.Pos + offset).decode()
    if not kind.startswith("["):
        return _read(schema, kind, Table(table.Bytes, table.Indirect(table.Pos + offset)))
    start, length = table.Vector(offset), table.VectorLen(offset)
    item = kind[1:-1]
    if kind == _BYTES:
        return bytes(table.Bytes[start : start + length])
    if item in _SCALARS:
        flags = _SCALARS[item]
        return [table.Get(flags, start + i * flags.bytewidth) for i in range(length)]
    places = [start + 4 * i for i in range(length)]
    if item == "string":
        return [table.String(place).decode() for place in places]
    return [_read(schema, item, Table(table.Bytes, table.Indirect(place))) for place in places]
