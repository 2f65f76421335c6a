"""The kinds of damage that a store's samples may have, as they are counted."""

from typing import Literal, get_args

# missing: a tar, or a sample's flow, is not there. size: a tar is shorter or longer than its index says. record: a
# shard's record is missing, damaged or another's. checksum: bytes differ from what was written. decode: frames do not
# decode. picture: they have another size than their record says.
DamageKind = Literal["missing", "size", "record", "checksum", "decode", "picture"]
DAMAGE_KINDS: tuple[DamageKind, ...] = get_args(DamageKind)
