// SPDX-License-Identifier: Apache-2.0
// Sample videos during training: the moving average of the weights makes a few videos and a contact sheet.
#ifndef TS_TRAIN_PREVIEW_H
#define TS_TRAIN_PREVIEW_H

#include "train/report.h"
#include "train/trainer.h"

enum {
    TS_PREVIEW_CAPTIONS = 4,  // prompts taken from the validation clips when the configuration names none
    TS_PREVIEW_BATCH = 8      // videos sampled together: bounds the memory
};

// Writes FOLDER/samples/step-NNNNNNNN-I.mp4 and .png, and gives the sheet to the report. The noise is the same each
// time, so that videos of two steps show what was learned between them. Collective.
int ts_preview(ts_trainer *trainer, const char *folder, ts_report *report);

#endif
