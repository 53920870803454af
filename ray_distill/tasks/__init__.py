"""What differs by problem: one file a task, one explicit catalogue."""
