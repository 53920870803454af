"""Load a campaign's file, and make its JSON schema; may import all that `cli` may."""
