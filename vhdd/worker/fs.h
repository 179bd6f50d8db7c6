/* SPDX-License-Identifier: Apache-2.0 */
/* fs.h - a file system that has no files: every name goes to the broker, which answers with a
 * descriptor or a refusal. What is open works without the broker.
 *
 * Units      bytes.
 * Ownership  proxy_fs_new hands out, proxy_fs_free ends, after all its files.
 * Errors     as base/file.h. -EHOSTDOWN: there is no broker now, or it went before it answered.
 * Threads    any, but not the thread that runs the channel's rpc_run (it would wait for itself).
 */
#pragma once

#include <jansson.h>

#include "base/file.h"
#include "vhdd/ipc/rpc.h"

struct proxy_fs;

/* Before the sandbox: it reads this boot's id. */
int proxy_fs_new(struct proxy_fs **ret, struct error *err);
struct proxy_fs *proxy_fs_free(struct proxy_fs *proxy); /* NULL is fine; always returns NULL */
struct fs *proxy_fs_get(struct proxy_fs *proxy);
/* Who answers from now on; NULL: nobody. */
void proxy_fs_connect(struct proxy_fs *proxy, struct rpc *rpc);

/* Up to @max open files from the @offset-th on: their paths into @paths (an array), copies of their
 * descriptors (the caller's) into @fds. Answers how many. */
unsigned proxy_fs_list(
        struct proxy_fs *proxy, size_t offset, json_t *paths, int *fds, unsigned max);
