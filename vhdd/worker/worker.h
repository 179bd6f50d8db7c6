/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - the process that has a vm's chains and NBD clients.
 *
 *      vhdd --worker VMID --threads N --uid UID --gid GID      with descriptor 3: a listening socket
 *
 * Whoever connects to the socket is the broker; a later one supersedes it. The worker lives on when
 * the broker dies. It has no path of its own (vhdd/worker/fs.h) and goes into a sandbox before it reads
 * the first message (vhdd/worker/sandbox.h).
 *
 * What the broker asks (vhdd/ipc/rpc.h). CHAIN is a name that the broker chooses: the disk's id for the
 * live one, DISK@SNAPSHOT for a snapshot's. Paths are absolute, leaf first. Ids are texts.
 *
 *  hello {protocol, vm}                       {fresh, pid, chains: [{chain, paths, writable, size,
 *                                             block-size, root-type, frozen}], exports: [{name, chain, read-only, clients}],
 *                                             switched: SNAPSHOT|null, merges: as merge.status}
 *  files {offset}                             {paths, next: offset|null} and the descriptors: what is
 *                                             open, so that its locks have a holder again
 *  chain.open {chain, paths, format?,         {size, block-size, root-type, writable, layers: [{path, uuid,
 *      writable, direct?}                     type, format, size}], warning?}    a parent that a dead process left
 *                                             unsettled is settled first; with an uncommitted switch
 *                                             of this disk, flushes wait for snapshot.commit
 *  chain.close {chain}                        {}     cleanly; -EBUSY while it has exports
 *  chain.create-child {chain, path, uuid?}    {uuid, size}    an empty child of the chain's leaf, synced
 *  image.create-child {parents, path, uuid?}  {uuid, size}    the same over images that no chain has
 *                                             open
 *  image.settle {path, format?}               {}     replays and closes one image; no chain has it
 *  image.forget {path}                        {}     before its file is unlinked
 *  snapshot.switch {snapshot, chains:         {stall-us, chains: [{chain, frozen}]}    E10; all or none
 *      [{chain, disk, path}]}
 *  snapshot.flush {snapshot}                  {}     every frozen image is durable and settled
 *  snapshot.commit {snapshot}                 {}     what waited for it is answered; the record goes
 *  snapshot.switched {beside?}                {snapshot: id|null, disks: [{disk, frozen: {device,
 *                                             inode}, leaf: {device, inode}}]}    the record's word
 *                                             (without BESIDE: if a writable chain was opened)
 *  merge.plan {chain, hidden: [path],         {direction, images: [path], destination, bytes,
 *      shared?, direction?}                   bytes-other-way|null, keeps-sources}    the hidden images (lowest
 *                                             first) are to go with the one above them: down, into the lowest,
 *                                             or up; SHARED: others stand on them, too. images: who goes
 *  merge.begin {job, chain, images,           {new-id|null, bytes-total, layers}    as merge.plan said; from here
 *      direction, shared?, new-id?, force?,   on a thread of its own. -EEXIST: it has that job already
 *      rate?, paused?}
 *  compact.begin {job, chain, rate?, paused?} {bytes-total, file-size}    of the chain's leaf; from here on
 *                                             as a merge, but when it is done there is nothing to finish:
 *                                             merge.free. ESTALE: a snapshot made another image the leaf
 *  merge.pause, merge.resume {job}            {}     resume also tries again after a failure
 *  merge.limit {job, rate}                    {}     bytes a second, 0: none
 *  merge.status {}                            {merges: [{job, chain, state: running|paused|failed|done|
 *                                             finished, bytes-done, bytes-total, speed, error|null, code}]}
 *  merge.finish {job, children: [path]}       {layers}    after it was done. -EBUSY, -ENOSPC: it can be
 *                                             asked again; after another failure begin anew
 *  merge.free {job}                           {}     it stops, and is forgotten; also a finished one
 *  seal.begin {job, chain, rate?}             {bytes-total}    the leaf of a chain that was opened for this, on
 *                                             a thread of its own: it is summed, and NAME.vhdd-seal.new written.
 *                                             The chain's closing ends it
 *  seal.limit {job, rate}                     {}     bytes a second, 0: none
 *  export.add {name, chain, read-only,        {}
 *      description?, changed?: [{name, layer}]}
 *  export.remove {name, force, timeout-ms}    {}     -EBUSY: without force, and somebody has it
 *  export.hide {name, hidden}                 {}
 *  export.changed {name, changed}             {}
 *  export.clients {name}                      {clients: n}
 *  client {handoff} and a descriptor          {}
 *  clients {}                                 {clients: [...]}
 *  changed {chain, from-layer, offset, limit} {extents: [[start, length], ...], next: offset|null}
 *                                             what the layers above FROM-LAYER hold (null: all of it)
 *  metrics {}                                 counters of the server, of each chain, and of each
 *                                             export: {name, chain, kinds: {read: {requests, errors,
 *                                             bytes, latency-us, latency: [...]}, ...}}, as
 *                                             nbd/server/server.h says what they are
 *  quit {timeout-ms}                          {}, then it drains, flushes, closes, and ends with 0
 *
 * Events: {"event": "client", "what": "connected"|"served"|"gone", ...}, "log" {level, message},
 * "merge" {what: progress|running|paused|failed|done, and what merge.status says of it},
 * "seal" {what: progress|failed|done, job, bytes-done, bytes-total, speed, error?, code?, file-size?,
 * changed-ns?}.
 *
 * A chain's merge or compaction stops when the chain is closed, and is gone; begin goes on where it was.
 *
 * Threads    main takes brokers; a reader hands on what they ask and answers `client` and `clients`
 *            itself; one thread does the rest, in order; each merge
 *            has its own, but begins and ends on that one. A request that a superseded broker began is
 *            undone or finished before the next broker's hello is answered.
 */
#pragma once

#define WORKER_PROTOCOL 1

/* The process's whole life. Answers its exit status. */
int worker_main(int argc, char **argv);
