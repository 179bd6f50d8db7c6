/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what the files of the supervisor share.
 *
 *      off --start--> starting --QEMU answers--> on --SHUTDOWN, or stop: quit--> ending --pidfd--> off
 *                                                 on --save--> saved (QEMU has ended; its memory lies in a file)
 *
 * What takes time is an operation: a step function that is called whenever something has happened, and
 * says done, not yet, or failed. So nothing here waits for a guest.
 *
 * Units      bytes; milliseconds where a name ends in _ms.
 * Ownership  each file frees what it made, in its x_done().
 * Errors     0 or -errno with one sentence.
 * Threads    one.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "vmm-glue/connection.h"
#include "vmm-glue/link.h"
#include "vmm-glue/memory/balloon.h"
#include "vmm-glue/qemu.h"
#include "vmm-glue/qmp.h"
#include "vmm-glue/supervisor/config.h"
#include "vmm-glue/supervisor/qga.h"
#include "vmm-glue/supervisor/supervisor.h"

#define OPERATION_MAX_FDS LINK_MAX_FDS

struct operation;

/* 1 done (@ret may have been set), 0 not yet, -errno failed. */
typedef int (*operation_step)(struct supervisor *supervisor, struct operation *operation,
        json_t **ret, struct error *err);

struct operation {
        struct operation *next;
        const struct verb *verb;
        json_t *params;
        int fds[OPERATION_MAX_FDS]; /* -1: taken, or none */
        size_t n_fds;
        bool from_link; /* of vmm-host; else of the daemon; neither if number is -1 */
        json_int_t number;
        int64_t end_ms; /* CLOCK_MONOTONIC; INT64_MAX: none */
        unsigned phase;
        bool is_over;
        void *data; /* the step's own; */
        void (*free_data)(void *data);
};

struct verb {
        const char *name;
        operation_step step;
        unsigned limit_ms; /* 0: none */
        /* Optional: takes back what was begun, when it failed or its time is over. */
        void (*undo)(struct supervisor *supervisor, struct operation *operation);
        bool is_offered; /* to the daemon, at registration */
};

/* Why a guest stands still, if it is to go on by itself: hold.c. */
enum hold { HOLD_NONE, HOLD_START, HOLD_PAUSE };
#define HOLD_NAME   "held"
#define FROZEN_NAME "frozen"

struct supervisor {
        struct glue_options options; /* borrowed */
        const char *id;              /* the vm's */
        char *name;                  /* as last heard of, else the id */
        char *folder;                /* RUN/vmm/ID */
        sd_event *event;
        sd_event_source *signals[2], *listen, *kick, *tick, *poll;
        struct connection *connection;
        struct link *link; /* of vmm-host; NULL: there is none */
        int lock_fd, listen_fd;
        bool is_registered;
        bool is_ending; /* as soon as the guest is off */

        /* operation.c */
        struct operation *operations;

        /* QEMU's process: process.c */
        pid_t pid; /* 0: there is none */
        int pidfd;
        bool is_child;
        sd_event_source *process;

        /* the machine: machine.c */
        struct qmp *qmp;  /* NULL: not connected */
        json_t *config;   /* of the QEMU that runs, with what was hot-added */
        char status[32];  /* as QEMU calls it: running, paused, io-error ...; "" while it is off */
        bool user_paused; /* somebody asked for it: not to be continued by us */
        bool saw_end;     /* SHUTDOWN came, or we asked for the end */
        bool kept_saved;  /* QEMU ended because its memory is saved */
        json_t *deleted;  /* object: devices of which DEVICE_DELETED came */
        char migration[32]; /* its last MIGRATION event */
        unsigned n_resets;
        int64_t last_reset_ms;
        unsigned n_io_errors;
        int64_t stop_us, pause_us; /* of a snapshot: STOP to RESUME */
        json_t *last_end;          /* {"how", "message", "time"} or NULL */
        bool has_saved;            /* there is saved memory to go on from */
        bool stop_again;           /* QEMU is about to let a guest run that a person has paused */

        /* relay.c */
        sd_event_source *relay; /* NULL: none runs */
        int relay_result;

        /* hold.c */
        enum hold hold;
        bool is_hold_orphan; /* who would end it is gone */

        /* memory.c */
        uint64_t memory_target; /* as last asked for; 0: never */
        bool memory_is_set_up;
        int64_t memory_looked_ms;
        struct balloon balloon;
        uint64_t balloon_asked; /* 0: not known */

        /* guest.c */
        struct qga *qga; /* NULL: not connected */
        json_t *guest;   /* what the guest has said of itself */
        int64_t heartbeat_ms;
        unsigned tick_count;
        bool is_frozen;
        int64_t thaw_ms;
        unsigned n_late_thaws;
        bool set_time; /* when the agent answers next: it was restored */
};

static inline bool is_process_there(const struct supervisor *supervisor)
{
        return supervisor->pid > 0;
}

int64_t monotonic_ms(void);

/* --- operation.c --- */

/* The verb of that name. Takes @params over, and the descriptors. Answers at once if there is no such
 * verb. */
void operation_begin(struct supervisor *supervisor, const char *verb, json_t *params, int *fds,
        size_t n_fds, bool from_link, json_int_t number);
/* One that nobody asked for. */
void operation_begin_own(struct supervisor *supervisor, const char *verb, json_t *params);
/* Something has happened: every step is called soon. */
void operations_kick(struct supervisor *supervisor);
int operations_start(struct supervisor *supervisor, struct error *err);
void operations_done(struct supervisor *supervisor);
/* Another one of that name is under way. */
bool operation_is_running(
        const struct supervisor *supervisor, const char *verb, const struct operation *but);
const struct verb *verb_find(const char *name);
json_t *verbs_offered(void);

/* --- host_link.c: what vmm-host asks --- */

int host_link_start(struct supervisor *supervisor, struct error *err);
/* Tells vmm-host how it is. */
void host_link_tell_state(struct supervisor *supervisor);

/* --- agent.c: the daemon's end --- */

int agent_start(struct supervisor *supervisor, struct error *err);
void supervisor_set_name(struct supervisor *supervisor, const char *name); /* NULL: as before */
/* Whether the vm is on, if it can be told now; else it is told when we register again. */
void agent_tell_on(struct supervisor *supervisor);
/* An answer; @result is taken over. */
void agent_reply(
        struct supervisor *supervisor, json_int_t number, json_t *result, const struct error *err);

/* --- process.c --- */

/* Starts QEMU with @config. @fds are open in it under the same numbers. */
int process_spawn(struct supervisor *supervisor, const json_t *config,
        const struct command_options *options, struct error *err);
/* Finds the QEMU that an earlier supervisor started: whether there is one is in pid behind it. */
int process_adopt(struct supervisor *supervisor, struct error *err);
/* At once, whatever it does. */
void process_kill(struct supervisor *supervisor);
void process_done(struct supervisor *supervisor);
/* The last line that QEMU left in its log, for a sentence. */
void process_last_words(struct supervisor *supervisor, char *ret, size_t size);
/* config.json anew, after a hot change. */
int process_note_config(struct supervisor *supervisor, struct error *err);

/* --- hold.c --- */

/* Before the guest is stopped: whoever comes after us knows that it is to go on. */
int hold_set(struct supervisor *supervisor, enum hold hold, struct error *err);
void hold_end(struct supervisor *supervisor); /* it runs, or is a person's to let run */
/* Who asked for the pause is gone: the guest goes on with the next tick. */
void hold_forsake(struct supervisor *supervisor);
/* QEMU is an earlier supervisor's, and its monitor answers. */
void hold_adopt(struct supervisor *supervisor);
void hold_tick(struct supervisor *supervisor);

/* --- machine.c --- */

/* QEMU's monitor, if it can be reached now.   -EAGAIN not yet */
int machine_connect(struct supervisor *supervisor, struct error *err);
/* Its process has ended: by its own will or not. Called by process.c, once. */
void machine_ended(struct supervisor *supervisor, int status, bool status_is_known);
/* Asks QEMU, and tells vmm-host if it is another than before. */
void machine_look(struct supervisor *supervisor);
bool machine_is_running(const struct supervisor *supervisor);
/* There is one that can be asked; else a sentence that says why not. */
int machine_must(struct supervisor *supervisor, struct error *err);
/* For people and for JSON: "off", "running", "saved" ... */
const char *machine_state(const struct supervisor *supervisor);
void machine_quit(struct supervisor *supervisor);
void machine_done(struct supervisor *supervisor);

/* --- power.c, start.c, save.c, disks.c, networks.c, guest.c: steps of verbs --- */

int step_start(struct supervisor *, struct operation *, json_t **, struct error *);
void undo_start(struct supervisor *, struct operation *);
int step_stop(struct supervisor *, struct operation *, json_t **, struct error *);
int step_shutdown(struct supervisor *, struct operation *, json_t **, struct error *);
int step_reset(struct supervisor *, struct operation *, json_t **, struct error *);
int step_pause(struct supervisor *, struct operation *, json_t **, struct error *);
int step_resume(struct supervisor *, struct operation *, json_t **, struct error *);
int step_save(struct supervisor *, struct operation *, json_t **, struct error *);
void undo_save(struct supervisor *, struct operation *);
int step_disk_add(struct supervisor *, struct operation *, json_t **, struct error *);
int step_disk_remove(struct supervisor *, struct operation *, json_t **, struct error *);
int step_disk_resize(struct supervisor *, struct operation *, json_t **, struct error *);
int step_freeze(struct supervisor *, struct operation *, json_t **, struct error *);
int step_thaw(struct supervisor *, struct operation *, json_t **, struct error *);
int step_describe(struct supervisor *, struct operation *, json_t **, struct error *);
int step_network_add(struct supervisor *, struct operation *, json_t **, struct error *);
int step_network_remove(struct supervisor *, struct operation *, json_t **, struct error *);
int step_set_memory(struct supervisor *, struct operation *, json_t **, struct error *);

/* marks.c: the file RUN/vmm/ID/@name, and a text in it for whoever comes after our death. */
int path_of(struct supervisor *supervisor, const char *name, char **ret, struct error *err);
int mark_set(struct supervisor *supervisor, const char *name, const char *word, struct error *err);
bool mark_get(struct supervisor *supervisor, const char *name, char *ret, size_t size); /* false: none */
void mark_end(struct supervisor *supervisor, const char *name);

/* save.c: where a vm's own saved memory lies. */
int saved_path(const struct supervisor *supervisor, char **ret, struct error *err);
/* It does not fit any more, or was used. */
void saved_drop(struct supervisor *supervisor);
/* Are the disks still those that it was saved with?   -ESTALE no */
int saved_check(struct supervisor *supervisor, struct error *err);
/* The daemon tells that something about the vm changed, with us as its witness. */
void saved_event(struct supervisor *supervisor, const char *type);
/* At the start: is there some? */
void saved_look(struct supervisor *supervisor);

/* guest.c: the guest's agent. */
void guest_tick(struct supervisor *supervisor);
void guest_done(struct supervisor *supervisor);
json_t *guest_describe(struct supervisor *supervisor);
/* Behind an adoption: did an earlier supervisor leave it frozen? */
void guest_look(struct supervisor *supervisor);
/* It boots anew, with nothing frozen. */
void guest_was_reset(struct supervisor *supervisor);
/* The channel was opened or closed by the guest. */
void guest_channel(struct supervisor *supervisor, bool is_open);
bool guest_has_agent(const struct supervisor *supervisor);
int guest_shutdown(struct supervisor *supervisor, struct error *err);

/* memory.c */
void memory_tick(struct supervisor *supervisor);
