/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that left their client's thread hold memory until the client has taken the reply. Their
 * bytes are bounded for each client and for all. A client at its bound is not read from; one that
 * has nothing in flight may always start one request, so that clients who take no replies can use up
 * the common bound and still stop nobody else. */
#include <assert.h>

#include "nbd/server/private.h"

void flight_init(struct flight *flight, uint64_t max_bytes, uint64_t max_bytes_per_client)
{
        *flight = (struct flight){
                .max_bytes = max_bytes,
                .max_bytes_per_client = max_bytes_per_client,
        };
        pthread_mutex_init(&flight->lock, NULL);
        pthread_cond_init(&flight->less, NULL);
}

void flight_done(struct flight *flight)
{
        assert(flight->bytes == 0);
        pthread_cond_destroy(&flight->less);
        pthread_mutex_destroy(&flight->lock);
}

static bool has_room_locked(const struct client *client, uint64_t bytes)
{
        const struct flight *flight = &client->server->flight;

        if (client->n_in_flight == 0)
                return true;
        return client->n_in_flight < CLIENT_MAX_REQUESTS &&
                client->bytes_in_flight + bytes <= flight->max_bytes_per_client &&
                flight->bytes + bytes <= flight->max_bytes;
}

static void enter_locked(struct client *client, uint64_t bytes)
{
        client->n_in_flight++;
        client->bytes_in_flight += bytes;
        client->server->flight.bytes += bytes;
}

bool flight_try_enter(struct client *client, uint64_t bytes)
{
        MUTEX_GUARD(&client->server->flight.lock);

        if (!has_room_locked(client, bytes))
                return false;
        enter_locked(client, bytes);
        return true;
}

void flight_enter(struct client *client, uint64_t bytes)
{
        struct flight *flight = &client->server->flight;
        MUTEX_GUARD(&flight->lock);

        flight->n_waiting++;
        while (!has_room_locked(client, bytes))
                pthread_cond_wait(&flight->less, &flight->lock);
        flight->n_waiting--;
        enter_locked(client, bytes);
}

void flight_leave(struct client *client, uint64_t bytes)
{
        struct flight *flight = &client->server->flight;
        MUTEX_GUARD(&flight->lock);

        assert(client->n_in_flight > 0);
        assert(client->bytes_in_flight >= bytes);
        client->n_in_flight--;
        client->bytes_in_flight -= bytes;
        flight->bytes -= bytes;
        if (flight->n_waiting > 0)
                pthread_cond_broadcast(&flight->less);
}

void flight_wait_none(struct client *client)
{
        struct flight *flight = &client->server->flight;
        MUTEX_GUARD(&flight->lock);

        flight->n_waiting++;
        while (client->n_in_flight > 0)
                pthread_cond_wait(&flight->less, &flight->lock);
        flight->n_waiting--;
}
