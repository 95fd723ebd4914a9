// What the Python-free shared library shows to the bindings; everything else is hidden.
#pragma once

#define TERNGRAD_API __attribute__((visibility("default")))
