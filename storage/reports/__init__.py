"""How does the evidence read, for those who do not read JSON? Pages, tables and other programs' formats.

Everything here is derived from the entries, and nothing here is the evidence: that is ``entries.jsonl``.
"""
