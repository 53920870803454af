"""What a teacher wrote, and the snapshot made of it. Imports storage, snapshots, labels; no torch, no ray."""
