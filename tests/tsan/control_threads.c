/* SPDX-License-Identifier: Apache-2.0 */
/* Clients that come, ask, subscribe, stop reading and leave; events from several threads; an agent that is
 * spoken to while it goes; and in the middle of it the server ends. A race here would be one in the
 * daemon's only door. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vhdd/control/client.h"
#include "vhdd/control/server.h"

#define N_CLIENTS    6
#define N_PUBLISHERS 2
#define RUN_MS       1000

struct broker {
        struct control_server *server;
        pthread_mutex_t lock;
        struct control_client *agent; /* guarded by lock */
        atomic_uint n_calls, n_gone;
        atomic_bool ends;
        char path[64];
};

static int run_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        atomic_fetch_add(&broker->n_calls, 1);
        control_server_publish(broker->server, json_pack("{s:s}", "type", "listed"));
        *ret = json_array();
        return 0;
}

static void on_gone(void *opaque)
{
        struct broker *broker = opaque;

        atomic_fetch_add(&broker->n_gone, 1);
}

/* The newest agent is the one; an older one is forgotten. */
static int run_register(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        struct control_client *before;

        control_client_on_gone(caller->client, on_gone, broker);
        pthread_mutex_lock(&broker->lock);
        before = broker->agent;
        broker->agent = control_client_ref(caller->client);
        pthread_mutex_unlock(&broker->lock);
        control_client_unref(before);
        *ret = json_object();
        return 0;
}

static const struct method methods[] = {
        {"vm.list", run_list, false},
        {"agent.register", run_register, true},
        {NULL, NULL, false},
};

/* One connection's life; what kind, chance says. False: the server takes no more. */
static bool visit(struct broker *broker, unsigned *seed)
{
        _cleanup_(control_closep) struct control *control = NULL;
        struct error err = ERROR_INIT;
        int kind = rand_r(seed) % 4, r = control_connect(broker->path, &control, &err);

        if (r < 0)
                return false;
        for (int i = rand_r(seed) % 20; r == 0 && i > 0; i--) {
                json_t *result = NULL;

                if (kind == 0)
                        r = control_call(control, "events.subscribe", NULL, &result, &err);
                else if (kind == 1)
                        r = control_call(control, "agent.register", json_pack("{s:s}", "vm", "web"),
                                &result, &err);
                else
                        r = control_call(control, "vm.list", NULL, &result, &err);
                json_decref(result);
        }
        return true;
}

static void *run_client(void *opaque)
{
        struct broker *broker = opaque;
        unsigned seed = (unsigned)(uintptr_t)pthread_self();

        while (!atomic_load(&broker->ends))
                if (!visit(broker, &seed))
                        break;
        return NULL;
}

static void *run_publisher(void *opaque)
{
        struct broker *broker = opaque;
        const struct timespec pause = {.tv_nsec = 200000};

        while (!atomic_load(&broker->ends)) {
                struct control_client *agent;

                control_server_publish(
                        broker->server, json_pack("{s:s, s:s}", "type", "job", "vm", "web"));
                pthread_mutex_lock(&broker->lock);
                agent = broker->agent ? control_client_ref(broker->agent) : NULL;
                pthread_mutex_unlock(&broker->lock);
                if (agent)
                        control_client_notify(agent, "agent.request", json_object(),
                                (int[]){STDERR_FILENO}, 1, NULL);
                control_client_unref(agent);
                nanosleep(&pause, NULL);
        }
        return NULL;
}

int main(void)
{
        static const struct method *const tables[] = {methods, NULL};
        struct broker broker = {.lock = PTHREAD_MUTEX_INITIALIZER};
        struct control_options options = {.listen_fd = -1, .broker = &broker, .tables = tables};
        const struct timespec pause = {.tv_sec = RUN_MS / 1000, .tv_nsec = RUN_MS % 1000 * 1000000};
        pthread_t clients[N_CLIENTS], publishers[N_PUBLISHERS];
        char folder[] = "/tmp/vhdd-control-threads.XXXXXX";
        struct error err = ERROR_INIT;

        if (!mkdtemp(folder))
                return 1;
        snprintf(broker.path, sizeof(broker.path), "%s/control.sock", folder);
        options.path = broker.path;
        if (control_server_new(&options, &broker.server, &err) < 0) {
                fprintf(stderr, "%s\n", err.message);
                return 1;
        }
        for (int i = 0; i < N_PUBLISHERS; i++)
                pthread_create(&publishers[i], NULL, run_publisher, &broker);
        for (int i = 0; i < N_CLIENTS; i++)
                pthread_create(&clients[i], NULL, run_client, &broker);
        nanosleep(&pause, NULL);
        control_server_stop(broker.server, 5000); /* with everybody still there */
        atomic_store(&broker.ends, true);
        for (int i = 0; i < N_PUBLISHERS; i++)
                pthread_join(publishers[i], NULL);
        control_server_free(broker.server);
        for (int i = 0; i < N_CLIENTS; i++)
                pthread_join(clients[i], NULL);
        control_client_unref(broker.agent);
        rmdir(folder);
        printf("%u calls, %u agents came and went\n", atomic_load(&broker.n_calls),
                atomic_load(&broker.n_gone));
        return atomic_load(&broker.n_calls) > 0 && atomic_load(&broker.n_gone) > 0 ? 0 : 1;
}
