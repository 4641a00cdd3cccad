"""Flatbuffer tables as plain dicts, by a schema that is data.

A schema maps a table's name to its fields, in the order of the format's own definition. A field is `(name, type)`; a type is

- a scalar: "byte", "int", "uint", "float", "bool",
- "string", or "[ubyte]" (bytes; any length, aligned to 16),
- the name of another table,
- any of these in a list: "[float]", "[string]", "[TensorMetadata]",
- a union of tables as a tuple of their names: it takes two places in the format (the table's number, and the table), and its
  value is `(name of the table, dict)`.
"""

import re
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

Schema = Mapping[str, tuple[tuple[str, object], ...]]


def parse_schema(text: str) -> Schema:
    """The tables of a schema in FlatBuffers' own language: `table NAME { field:type; }`, `union NAME { TABLE, TABLE }`."""
    bodies = {kind: re.findall(rf"{kind} (\w+) {{(.*?)}}", text, re.DOTALL) for kind in ("union", "table")}
    unions = {name: tuple(re.findall(r"\w+", body)) for name, body in bodies["union"]}
    return {
        name: tuple((field, unions.get(kind, kind)) for field, kind in re.findall(r"(\w+):([\w\[\]]+);", body))
        for name, body in bodies["table"]
    }


def pack_table(schema: Schema, root: str, value: dict, identifier: bytes) -> bytes:
    """A dict as a flatbuffer.

    Args:
        schema: the tables.
        root: name of the outermost table.
        value: its fields; a field that is absent or None has the format's default.
        identifier: the format's four letters.

    Raises:
        ValueError: a field that the table does not have.
    """
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(schema, root, value, builder), identifier)
    return bytes(builder.Output())


def _write(schema: Schema, name: str, value: dict, builder) -> int:
    fields = dict(schema[name])
    if unknown := set(value) - set(fields):
        raise ValueError(f"{name} has no field {min(unknown)!r}: expected {', '.join(fields)}.")
    slots, places = [], 0  # (place in the table, type of a scalar, content)
    for field, kind in fields.items():
        content, place = value.get(field), places
        places += 2 if isinstance(kind, tuple) else 1
        if content is None:
            continue
        if isinstance(kind, tuple):
            member, content = content
            slots.append((place, number_types.Uint8Flags, kind.index(member) + 1))
            slots.append((place + 1, None, _write(schema, member, content, builder)))
        elif kind in _SCALARS:
            slots.append((place, _SCALARS[kind], content))
        else:
            slots.append((place, None, _write_reference(schema, kind, content, builder)))
    builder.StartObject(places)
    for place, scalar, content in slots:
        if scalar is None:
            builder.PrependUOffsetTRelativeSlot(place, content, 0)
        else:
            builder.PrependSlot(scalar, place, content, None)
    return builder.EndObject()


def _write_reference(schema: Schema, kind: str, value, builder) -> int:
    """What a table points to: a string, bytes, another table or a list."""
    if kind == "string":
        return builder.CreateString(value)
    if kind == "[ubyte]":
        builder.StartVector(1, len(value), 16)
        builder.head -= len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value
        return builder.EndVector()
    if not kind.startswith("["):
        return _write(schema, kind, value, builder)
    item = kind[1:-1]
    if item in _SCALARS:
        size = _SCALARS[item].bytewidth
        builder.StartVector(size, len(value), size)
        for number in reversed(value):
            builder.Prepend(_SCALARS[item], number)
        return builder.EndVector()
    references = [_write_reference(schema, item, content, builder) for content in value]
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
        return _read(schema, root, Table(bytearray(content), start), _Budget())
    except Exception as error:  # wrong offsets end in errors of struct, Unicode and others
        raise ValueError(f"{root} is damaged ({error}).") from error


class _Budget:
    """Bytes that may still be read: parts that refer to each other stand for many times their own size."""

    def __init__(self):
        self.left = 2**24

    def spend(self, count: int) -> None:
        """Use some of it; ValueError when none is left."""
        self.left -= count
        if self.left < 0:
            raise ValueError("its parts refer to each other until they stand for more than 16 MiB")


def _read(schema: Schema, name: str, table: Table, budget: _Budget) -> dict:
    budget.spend(1024)
    value, place = {}, 0
    for field, kind in schema[name]:
        offset = table.Offset(4 + 2 * place)
        place += 2 if isinstance(kind, tuple) else 1
        if not offset:
            continue
        if isinstance(kind, tuple):
            number = table.Get(number_types.Uint8Flags, offset + table.Pos)
            offset = table.Offset(4 + 2 * (place - 1))
            if 0 < number <= len(kind) and offset:
                value[field] = kind[number - 1], _read_reference(schema, kind[number - 1], table, offset, budget)
        elif kind in _SCALARS:
            value[field] = table.Get(_SCALARS[kind], offset + table.Pos)
        else:
            value[field] = _read_reference(schema, kind, table, offset, budget)
    return value


def _read_reference(schema: Schema, kind: str, table: Table, offset: int, budget: _Budget):
    if kind == "string":
        return _text(table, table.Pos + offset, budget)
    if not kind.startswith("["):
        return _read(schema, kind, Table(table.Bytes, table.Indirect(table.Pos + offset)), budget)
    start, length, item = table.Vector(offset), table.VectorLen(offset), kind[1:-1]
    budget.spend(length)
    if item == "ubyte":
        return bytes(table.Bytes[start : start + length])
    if item in _SCALARS:
        flags = _SCALARS[item]
        return [table.Get(flags, start + i * flags.bytewidth) for i in range(length)]
    places = [start + 4 * i for i in range(length)]
    if item == "string":
        return [_text(table, place, budget) for place in places]
    return [_read(schema, item, Table(table.Bytes, table.Indirect(place)), budget) for place in places]


def _text(table: Table, place: int, budget: _Budget) -> str:
    content = table.String(place)
    budget.spend(len(content))
    return content.decode()
