-- How many entries are read at once: more than the answer may have are read, and dropped.
local CHUNK = 32

-- Return what a command reads; what is no log or hash at all, because another program has written
-- it, has nothing.
local function read_any(...)
  local found = redis.pcall(...)
  if not found.err then return found end
  if string.find(found.err, 'WRONGTYPE', 1, true) then return {} end
  return redis.call(...)
end

-- Return a whole number from 0 on, or nil if a field has another text, or none.
local function whole(text)
  if not text or #text > 15 or not string.match(text, '^%d+$') then return nil end
  return tonumber(text)
end

-- Return the event and the chain of an entry of a log, or nil if append.lua has not made it.
local function entry_of_append(entry)
  local fields = entry[2]
  if #fields ~= 4 or fields[1] ~= 'e' or fields[3] ~= 'm' then return nil end
  if not string.match(entry[1], '^%d+%-0$') then return nil end
  local chain = string.match(fields[4], '^%x%x%x%x%x%x%x%x')
  if not chain then return nil end
  return fields[2], chain
end

-- Read at most `count` events of a log, and at most `most` bytes of them, but always one.
--
-- `command` is XRANGE, from the offset `first` forward to `last`, or XREVRANGE, from `first` back
-- to `last`. Entries that no append has made are passed over.
-- Return {event, "ID CHAIN", …} in that order.
local function read_events(command, log, first, last, count, most)
  local place, events, bytes = string.format('%d-0', first), {}, 0
  local stop = string.format('%d-0', last)
  while count > 0 do
    local chunk = math.min(count, CHUNK)
    local entries = read_any(command, log, place, stop, 'COUNT', chunk)
    for _, entry in ipairs(entries) do
      local body, chain = entry_of_append(entry)
      if body and count > 0 then
        bytes = bytes + #body
        if bytes > most and #events > 0 then return events end
        events[#events + 1] = body
        events[#events + 1] = entry[1] .. ' ' .. chain
        count = count - 1
      end
    end
    if #entries < chunk then return events end
    place = '(' .. entries[chunk][1]
  end
  return events
end
