"""Read the file of a campaign and explain every mistake in it; may import `config`.

`document` parses the file and remembers lines, `shapes` walks the fields that a section may have, `values` finds values
that YAML reads otherwise than they are written, `mistakes` explains and repairs what pydantic refuses.
"""
