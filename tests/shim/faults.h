// SPDX-License-Identifier: Apache-2.0
// Mistakes of faults_sm90.cu, for the list in faults.cu.
#ifndef TS_SHIM_FAULTS_H
#define TS_SHIM_FAULTS_H

enum product_fault {
    NO_FAULT,
    NO_WAIT_FOR_COPY,
    NO_WAIT_FOR_PRODUCT,
    NO_FENCE,
    EARLY_REFILL,
    TOO_MANY_BYTES,
    WRONG_STRIDE
};
bool product_is_right(product_fault fault);

#endif
