/* SPDX-License-Identifier: Apache-2.0 */
/* resolver.h - the process that reads the headers of one chain and is thrown away.
 *
 *      vhdd --resolver --uid UID --gid GID      with descriptor 3: its end of a channel to the broker
 *
 * It is asked once: resolve {path, format?} -> {layers: [{path, uuid, type, format, size}, ...]},
 * leaf first, and asks for each file by name (vhdd/worker/fs.h); the broker opens what lies beneath
 * the allowed directories. Or: parents {paths} -> {images: [{path, parent}]}, the
 * differencing ones that can be read. Or: configuration {} with an open file -> what hyperv.h makes of it; or flatten
 * (flatten.h). It ends when the channel does.
 */
#pragma once

/* The process's whole life. Answers its exit status. */
int resolver_main(int argc, char **argv);
