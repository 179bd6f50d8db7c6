/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/macs.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/notes.h"

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for the addresses of network cards");
}

/* "00:15:5D:..." and "00-15-5d-..." are one. */
static void normalise(const char *mac, char ret[32])
{
        size_t n = 0;

        for (; *mac && n < 31; mac++)
                if (isxdigit((unsigned char)*mac))
                        ret[n++] = (char)tolower((unsigned char)*mac);
        ret[n] = '\0';
}

/* {ADDRESS: VM'S NAME} of all that are here. */
static int collect(struct catalog *catalog, json_t *taken, struct error *err)
{
        struct vm_row *rows = NULL;
        size_t n = 0;
        int r = catalog_vm_list(catalog, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                json_auto_t *settings = json_loads(rows[i].settings, 0, NULL);
                json_t *card;
                size_t k;

                json_array_foreach(json_object_get(settings, "networks"), k, card)
                {
                        const char *mac = json_string_value(json_object_get(card, "mac"));
                        char key[32];

                        if (!mac)
                                continue;
                        normalise(mac, key);
                        json_object_set_new(taken, key, json_string(rows[i].name));
                }
        }
        vm_rows_free(rows, n);
        return r;
}

/* Answers how many were left out. @notes: NULL, they were told already. */
static size_t leave_out(json_t *settings, const json_t *taken, json_t *notes)
{
        json_t *card;
        size_t i, n = 0;

        json_array_foreach(json_object_get(settings, "networks"), i, card)
        {
                const char *mac = json_string_value(json_object_get(card, "mac")), *vm;
                char key[32];

                if (!mac)
                        continue;
                normalise(mac, key);
                vm = json_string_value(json_object_get(taken, key));
                if (!vm)
                        continue;
                if (notes)
                        note_add(notes,
                                "network card %zu gets another address: vm '%s' has %s already",
                                i + 1, vm, mac);
                json_object_del(card, "mac");
                n++;
        }
        return n;
}

static int renew(char **text, const char *member, const json_t *taken, json_t *notes,
        struct error *err)
{
        json_auto_t *json = json_loads(*text, 0, NULL);
        char *now;

        if (leave_out(member ? json_object_get(json, member) : json, taken, notes) == 0)
                return 0;
        now = json_dumps(json, JSON_COMPACT);
        if (!now)
                return no_memory(err);
        free(*text);
        *text = now;
        return 0;
}

int macs_make_unique(
        struct catalog *catalog, struct sidecar *rows, json_t *notes, struct error *err)
{
        json_auto_t *taken = json_object();
        int r = taken ? collect(catalog, taken, err) : no_memory(err);

        if (r == 0)
                r = renew(&rows->vm.settings, NULL, taken, notes, err);
        for (size_t i = 0; r == 0 && i < rows->n_snapshots; i++)
                r = renew(&rows->snapshots[i].settings, "settings", taken, NULL, err);
        return r;
}
