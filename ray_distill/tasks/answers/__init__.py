"""What models answer: one folder a family, imported when first used. Only `catalogue` names a family."""
