// What a host of WebAssembly cannot have from stompp.h itself: a function of its own whose pointer a run takes.
#include "runtime/stompp.h"

extern "C" {

// The host gives the module this function.
__attribute__((import_module("stompp"), import_name("observe"))) void stompp_host_observe(void* context,
                                                                                          const stompp_value* value);

// Returns what stompp_run_options.observe takes.
STOMPP_API stompp_observe stompp_observer(void) { return stompp_host_observe; }
}
