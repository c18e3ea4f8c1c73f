-- For wrk: an inference request of exactly 1,024 bytes to the model `synthetic`.
local head = '{"inputs":[{"name":"input","datatype":"FP32","shape":[1,64],"data":['
local numbers = {}
for i = 1, 64 do numbers[i] = string.format("0.%06d", (i * 104729) % 1000000) end
local body = head .. table.concat(numbers, ",") .. "]}]"
wrk.method = "POST"
wrk.path = "/v2/models/synthetic/infer"
wrk.headers["Content-Type"] = "application/json"
wrk.body = body .. string.rep(" ", 1023 - #body) .. "}"
