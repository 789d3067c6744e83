-- Another URL for every request, as real clients have them: what a server remembers of a target helps it nothing.
local number = 0

request = function()
  number = number + 1
  return wrk.format("GET", "/items/" .. number .. "?page=" .. number)
end
