"""What travels: an update as bytes, and bytes that are refused.

One message is a header of 56 bytes and a body, little-endian throughout:

====== ===== =========================================================================================
offset bytes field
====== ===== =========================================================================================
0      4     magic ``HTFL``
4      1     version, 1
5      1     kind: 0 dense, 1 sparse
6      1     code of the values' dtype: 0 float16, 1 float32, 2 float64
7      1     code of the exact block's dtype: 1 float32, 2 float64; an empty block is coded as float32
8      4     round
12     8     client
20     8     size: the length D of the vector
28     8     count: the number k of values; D if dense
36     8     exact count: the number of entries of the exact block
44     8     index bytes: 0 if dense
52     4     CRC-32 of everything else: the header before it, then the body
56     ...   indices, if sparse: index[0], then index[i] - index[i-1] - 1, each an unsigned LEB128 varint
...    ...   values, k of them
...    ...   exact block, never rounded
====== ===== =========================================================================================

Every update has exactly one encoding: gaps cannot express a repeated or a falling index, and a varint that is longer
than it must be is refused. The checksum finds damage, not malice; against a client that means harm stand the checks of
:func:`decode`, which trusts what the server expects and nothing that the client says.
"""

from hetfl.wire.decoding import Expected, decode
from hetfl.wire.encoding import encode
from hetfl.wire.header import dense_size
from hetfl.wire.malformed import MalformedPayload, Reason

__all__ = ["Expected", "MalformedPayload", "Reason", "decode", "dense_size", "encode"]
