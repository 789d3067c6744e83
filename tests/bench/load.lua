-- What wrk asks, by the word after its "--": see rows.py.
local how, path = "plain", "/"
local number = 0
local once

local function fields()
  local found = {}
  for index = 1, 17 do  -- wrk adds Host, and two of its own are usual
    found["X-Field-" .. index] = "value number " .. index
  end
  found["Accept"] = "*/*"
  found["User-Agent"] = "wrk"
  return found
end

init = function(args)
  how = args[1] or how
  path = wrk.path
  if how == "fields" then
    once = wrk.format("GET", path, fields())
  elseif how == "post" then
    once = wrk.format("POST", path, nil, string.rep("0123456789", 1024))
  elseif how == "fresh" then
    once = wrk.format("GET", path, { ["Connection"] = "close" })
  elseif how == "pipelined" then
    once = string.rep(wrk.format("GET", path), 16)
  else
    once = wrk.format("GET", path)
  end
end

request = function()
  number = number + 1
  -- What a server remembers of a target, or of all fields, helps it nothing here.
  if how == "varied" then
    return wrk.format("GET", "/items/" .. number .. "?page=" .. number)
  elseif how == "changing" then
    return wrk.format("GET", path, { ["X-Request-Id"] = number })
  end
  return once
end
