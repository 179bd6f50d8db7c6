/* SPDX-License-Identifier: Apache-2.0 */
/* host_link.c - vmm-host connects here: one at a time, the newest counts. */
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define END_TIMEOUT_S 10 /* the daemon waits 15 for vmm-host */

static json_t *state_of(struct supervisor *supervisor)
{
        return json_pack("{s:s, s:b, s:b, s:s}", "vm", supervisor->id, "on",
                is_process_there(supervisor), "running", machine_is_running(supervisor), "state",
                machine_state(supervisor));
}

void host_link_tell_state(struct supervisor *supervisor)
{
        if (supervisor->link)
                link_note(supervisor->link, "state", state_of(supervisor));
}

/* The vm is not ours any more (then when its guest has ended), or the host ends: then its guest is asked to
 * shut down, and switched off when it does not. */
static void end(struct supervisor *supervisor, bool shutdown)
{
        supervisor->is_ending = true;
        if (shutdown && is_process_there(supervisor))
                operation_begin_own(
                        supervisor, "shutdown", json_pack("{s:i}", "timeout", END_TIMEOUT_S));
        operations_kick(supervisor);
}

static void on_request(void *opaque, struct link *link, json_int_t id, const char *verb,
        const json_t *message, int *fds, size_t n_fds)
{
        struct supervisor *supervisor = opaque;
        struct error err = ERROR_INIT;

        if (verb_find(verb)) {
                operation_begin(supervisor, verb, json_deep_copy(message), fds, n_fds, true, id);
                return;
        }
        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (strcmp(verb, "hello") == 0) {
                link_answer(link, id, state_of(supervisor), NULL, 0);
        } else if (strcmp(verb, "end") == 0) {
                link_answer(link, id, NULL, NULL, 0);
                end(supervisor, json_is_true(json_object_get(message, "shutdown")));
        } else {
                fail(&err, ENOSYS, "a supervisor does not know '%.64s'", verb);
                link_refuse(link, id, &err);
        }
}

static void on_note(void *opaque, struct link *link, const char *name, const json_t *message)
{
        if (strcmp(name, "changed") == 0)
                supervisor_set_name(opaque, json_string_value(json_object_get(message, "name")));
}

static void forget_asker(struct supervisor *supervisor)
{
        for (struct operation *one = supervisor->operations; one; one = one->next)
                if (one->from_link)
                        one->number = -1;
}

static void on_gone(void *opaque, struct link *link)
{
        struct supervisor *supervisor = opaque;

        forget_asker(supervisor);
        supervisor->link = link_free(link);
}

static int on_connect(sd_event_source *source, int listen_fd, uint32_t revents, void *opaque)
{
        struct supervisor *supervisor = opaque;
        const struct link_callbacks callbacks = {
                .request = on_request, .note = on_note, .gone = on_gone, .opaque = supervisor};
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct error err = ERROR_INIT;

        if (fd < 0)
                return 0;
        forget_asker(supervisor);
        supervisor->link = link_free(supervisor->link);
        if (link_new(supervisor->event, fd, &callbacks, &supervisor->link, &err) < 0) {
                log_error(&err);
                close(fd);
        }
        return 0;
}

int host_link_start(struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = vm_path(&supervisor->options, supervisor->id, "supervisor.sock", &path, err);

        if (r == 0)
                r = link_listen(path, &supervisor->listen_fd, err);
        if (r < 0)
                return r;
        r = sd_event_add_io(supervisor->event, &supervisor->listen, supervisor->listen_fd, EPOLLIN,
                on_connect, supervisor);
        return r < 0 ? fail_os(err, -r, "cannot watch '%s'", path) : 0;
}
