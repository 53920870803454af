"""Tokenize texts, chats and pairs, and generate text. Imports `core`."""
