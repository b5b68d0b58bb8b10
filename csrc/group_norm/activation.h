// What follows the norm.
#pragma once

namespace bitfast {

enum class Activation { kNone, kRelu, kSilu };

}  // namespace bitfast
