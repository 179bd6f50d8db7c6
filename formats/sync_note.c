/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/sync_note.h"

#include "formats/poison.h"
#include "formats/redo.h"

int sync_note_open(struct file *file, struct sync_note *ret, struct error *err)
{
        int r;

        *ret = (struct sync_note){0};
        r = redo_find(file, &ret->redo, err);
        return r < 0 ? r : poison_find(file, &ret->poison, err);
}

void sync_note_set(const struct sync_note *note, int code)
{
        redo_poison(note->redo);
        if (note->poison)
                poison_set(note->poison, code);
}

void sync_note_done(struct sync_note *note)
{
        note->redo = redo_close(note->redo, false);
        note->poison = poison_release(note->poison, false);
}
