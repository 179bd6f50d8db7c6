/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl umount - takes off what `vhdctl mount` has mounted, with all that was made for it. */
#include <stdio.h>
#include <string.h>

#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/mount_undo.h"
#include "vhdd/ctl/mounts.h"
#include "vhdd/ctl/output.h"

/* A folder that is gone may still have a note: by its path from the root it is found. */
static int find_target(const char *folder, char **ret, struct error *err)
{
        int r = mount_path(folder, ret, err);

        if (r != -ENOENT || folder[0] != '/')
                return r;
        error_clear(err);
        *ret = strdup(folder);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a path");
}

static int run(struct ctl *ctl, struct error *err)
{
        json_t *done = json_array();
        int r = 0;

        for (size_t i = 0; r == 0 && i < ctl->n_operands; i++) {
                _cleanup_free_ char *target = NULL;

                r = find_target(ctl->operands[i], &target, err);
                if (r == 0)
                        r = ctl->dry_run ? mount_look(target, err)
                                         : mount_undo(ctl, target, ctl->force, err);
                if (r == 0)
                        json_array_append_new(done, json_text(target));
        }
        if (r == 0 && ctl->json)
                json_print(json_pack("{s:O}", "unmounted", done));
        json_decref(done);
        return r < 0 ? r : CTL_DONE;
}

const struct command command_umount = {
        .name = "umount",
        .operands = "DIR...",
        .summary = "take off what mount has mounted",
        .doc = "Take off what `vhdctl mount' has mounted at DIR, with all that was made for it: file systems, "
               "loop devices, the disk. It answers when the image is closed. With --force what is in use "
               "goes out of sight, and ends with its last user."
               "\v"
               "Examples:\n"
               "  vhdctl umount /mnt\n"
               "  vhdctl umount --force /mnt/web /mnt/db",
        .n_operands_min = 1,
        .n_operands_max = COMMAND_ANY_NUMBER,
        .run = run,
};
