"""Connect to Ray, hold a campaign's session and classify failures. Imports no other room of `runtime`."""
