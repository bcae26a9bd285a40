-- The functions of the scripts that change a fence; it is put in front of them.
--
-- An entry is "ATTEMPT OFFSET TOKEN": the job's newest attempt; the offset of its end, or minus
-- the offset at which it began if it has not ended; and the token that claimed it.

local function read_attempt(fence, job)
  local text = redis.call('HGET', fence, job)
  local attempt, offset, token = string.match(text or '0 0 ', '^(%d+) (-?%d+) (.*)$')
  return {tonumber(attempt) or 0, tonumber(offset) or 0, token or ''}
end

-- Whether a text is a whole number from 0 on that Lua can count.
local function is_whole(text)
  return #text <= 15 and string.match(text, '^%d+$') ~= nil
end

-- Return 1 if the job was unknown, else 0.
local function write_attempt(fence, job, entry)
  return redis.call('HSET', fence, job, string.format('%d %d %s', entry[1], entry[2], entry[3]))
end

-- Whether a topic is open is in the field `open` of its meta: '' or absent if its own job has no
-- state or has ended; else when that job is due, in ms since 1970, or '0' if it waits for no time.
-- The rule is that of expires_at() in core/retention.py; the contract suite tests both.

-- How long to keep an open topic, in ms: open_ms from now, or from the time when its job is due.
local function open_expiry(open_ms, due)
  if due == 0 then return open_ms end
  local now = redis.call('TIME')
  return open_ms + math.max(0, due - now[1] * 1000)
end

-- Keep at most "limit" jobs without a state (deleted, or only claimed). They have no key, so the
-- limit of keys does not bound them. Of more, drop the oldest, a quarter of the limit at once.
local function drop_stateless(fence, state, limit)
  local excess = redis.call('HLEN', fence) - redis.call('HLEN', state) - limit
  if excess <= 0 then return end
  local has_state, by_age = {}, {}
  for _, key in ipairs(redis.call('HKEYS', state)) do has_state[key] = true end
  local all = redis.call('HGETALL', fence)
  for i = 1, #all, 2 do
    if not has_state[all[i]] then
      local offset = tonumber(string.match(all[i + 1], '^%d+ (-?%d+) ')) or 0
      by_age[#by_age + 1] = {math.abs(offset), all[i]}
    end
  end
  table.sort(by_age, function(a, b) return a[1] < b[1] end)
  for i = 1, math.min(#by_age, excess + math.floor(limit / 4)) do
    redis.call('HDEL', fence, by_age[i][2])
  end
end

