// What the headers of torch before 2.13 lack, so that the same files compile against every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// From 2.13 on it throws the error's own message; here it throws the name of the call that failed.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif
