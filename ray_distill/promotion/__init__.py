"""Stage 5, decide: an EvalReport becomes PROMOTE, HOLD or REJECT. Pure; imports no torch."""
