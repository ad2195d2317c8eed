"""The bytes of a container: superblock, armoured metadata at both ends, payload, parity.

Knows no code of the payload and no representation: what the metadata says of them is opaque sections here.
`docs/format.md` is the normative description.
"""
