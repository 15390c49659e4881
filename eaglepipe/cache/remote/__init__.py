"""Caches in object stores, each seen through its local folder (`stores.local`), which is read as any cache's.

The local folder has the small files of the cache. A shard is there while it is used; its sidecar is there if, and only
if, the store has both. Publishing keeps the order of a disk: plan first, shard before sidecar, manifest last.

A store keeps less than a disk does:

- Names appear whole or not at all, as by a rename, so a kill anywhere still leaves a cache that is complete or lists
  what is missing. The open shard is computed again, also if it was killed while it was uploaded.
- S3 creates a name for one writer only, which serves plan and manifest; in the other stores the last writer of the same
  name wins. Two writers of one identity have the same bytes on one kind of device, and sealing compares every shard
  with its sidecar, so that a mixture of two is made again and never sealed.
- There are no locks. Processes of one machine share the locks of the local folder; those of several machines take
  shares (`--workers i/n`). Without shares no data is lost, but a shard may be computed twice.
- The tokenised corpus and the answers of `data.generate` stay on the machine that made them until the cache is sealed.
"""
