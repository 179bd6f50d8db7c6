/* SPDX-License-Identifier: Apache-2.0 */
/* broker.h - the daemon's own process: what its parts share.
 *
 * It owns the catalog and the policy; it opens and locks files and never parses one. A worker for
 * each vm, the greeter and the resolvers are processes of their own (docs/architecture.md).
 *
 * Units      as the names say.
 * Ownership  one for each process, made by daemon_main() and gone with it.
 * Threads    the fields under "immutable" from any thread. Locks are taken in this order:
 *            vm -> catalog -> link; nobody calls a worker with the catalog locked.
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define VHDD_VM_ID_SIZE 37 /* a uuid's text and its end */

struct catalog;
struct control_server;
struct greeter;
struct vmm; /* vhdd/daemon/vmm.h */
struct vms; /* vhdd/daemon/vms.h: every vm, and its worker */

struct broker_options {
        char *state_dir;    /* absolute */
        char *control_path; /* STATE-DIR/control.sock */
        char **nbd_paths;   /* STATE-DIR/nbd.sock when none is named */
        size_t n_nbd_paths;
        char **nbd_addresses; /* "HOST:PORT", loopback only as long as there is no TLS */
        size_t n_nbd_addresses;
        char **image_roots; /* absolute */
        size_t n_image_roots;
        char *metrics_path; /* NULL: no metrics socket */
        unsigned threads;   /* that may block, in each worker; 0: its default */
        char *user;  /* what workers become when we are root; NULL: vhdd-worker, else nobody */
        char *group; /* who may use the sockets beside root and us; NULL: vhdd, if there is such */
        bool insecure;
        char *vmm_command;    /* a shell's line, or NULL: there is no vmm-host */
        uint64_t host_memory; /* bytes that guests may have in all; 0: what the host has */
};

struct broker {
        /* immutable after start */
        struct broker_options options;
        int64_t started_us; /* CLOCK_REALTIME */
        char *run_dir;      /* STATE-DIR/run */
        char *executable;   /* what workers are started from: /proc/self/exe */
        uid_t worker_uid;   /* what workers become; our own when we are not root */
        gid_t worker_gid;
        struct catalog *catalog;
        struct vms *vms;                /* set by vms_start() */
        struct control_server *control; /* set before the first call can come */
        struct greeter *greeter;
        struct vmm *vmm;

        /* set once, when the daemon begins to end: calls that change something are refused */
        _Atomic bool stopping;
};

enum broker_log_level { BROKER_LOG_ERROR, BROKER_LOG_WARNING, BROKER_LOG_INFO, BROKER_LOG_DEBUG };

/* One line on stderr, with systemd's level in front where it reads it. @about: a vm's or a process's
 * name, or NULL. Any thread. */
void broker_log(struct broker *broker, enum broker_log_level level, const char *about,
        const char *format, ...) __attribute__((format(printf, 4, 5)));
/* The sentence, with file and hint behind it. */
void broker_log_error(struct broker *broker, const char *about, const struct error *err);

/* Tells everybody who subscribed: @event (taken over) gets "type": @name and "time". Any thread. */
void broker_publish(struct broker *broker, const char *name, json_t *event);

/* Ends the daemon as SIGTERM does, or executes it anew as SIGHUP does; answers at once. Any thread. */
void broker_request_stop(struct broker *broker);
void broker_request_restart(struct broker *broker);
