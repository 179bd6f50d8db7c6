/* SPDX-License-Identifier: Apache-2.0 */
/* metrics.h - counters for those who watch: as OpenMetrics text, over the control API and, with
 * --metrics-socket, over HTTP on a unix socket of its own.
 *
 * Units      seconds and bytes, as OpenMetrics wants them; names end in their unit.
 * Ownership  metrics_start hands out, metrics_stop ends.
 * Errors     0 or -errno with one sentence. A worker that does not answer is left out.
 * Threads    metrics_text: any, without a vm's lock.
 */
#pragma once

#include "base/error.h"
#include "vhdd/daemon/broker.h"

struct metrics_server;

/* Allocated. */
int metrics_text(struct broker *broker, char **ret, struct error *err);

/* Listens on options.metrics_path; nothing without one (*ret NULL). Whoever may open the socket
 * (0660) may read. */
int metrics_start(struct broker *broker, struct metrics_server **ret, struct error *err);
struct metrics_server *metrics_stop(struct metrics_server *server); /* NULL is fine; returns NULL */
