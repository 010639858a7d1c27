"""What travels: an update as bytes, and bytes that are refused; every byte is described in ``docs/wire.md``.

A message is a fixed header of 56 bytes, the support (which entries), the values, and an exact block. The checksum finds
damage, not malice; against a client that means harm stand the checks of :func:`decode`, which trusts what the server
expects and nothing that the client says.
"""

from hetfl.wire.decoding import Expected, decode
from hetfl.wire.encoding import as_sent, encode
from hetfl.wire.header import dense_size
from hetfl.wire.malformed import MalformedPayload, Reason
from hetfl.wire.parts import decode_part, encode_part
from hetfl.wire.submodel import Submodel, decode_submodel, encode_submodel

__all__ = [
    "Expected",
    "MalformedPayload",
    "Reason",
    "Submodel",
    "as_sent",
    "decode",
    "decode_part",
    "decode_submodel",
    "dense_size",
    "encode",
    "encode_part",
    "encode_submodel",
]
