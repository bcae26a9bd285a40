-- The functions of the scripts that change a fence; it is put in front of them.
--
-- An entry is "ATTEMPT OFFSET TOKEN": the job's newest attempt; the offset of its end, or minus
-- the offset at which it began if it has not ended; and the token that claimed it.

local function read_attempt(fence, job)
  local text = redis.call('HGET', fence, job)
  local attempt, offset, token = string.match(text or '0 0 ', '^(%d+) (-?%d+) (.*)$')
  return {tonumber(attempt), tonumber(offset), token}
end

-- Return 1 if the job was unknown, else 0.
local function write_attempt(fence, job, entry)
  return redis.call('HSET', fence, job, string.format('%d %d %s', entry[1], entry[2], entry[3]))
end

-- How long to keep the topic of the job `own` after a change, in ms: ttl_ms, or, while the key of
-- that job has a state and its newest attempt has not ended, open_ms from now or from the time when
-- the job is due (ms since 1970; 0: it waits for none). The rule of expires_at() in
-- core/retention.py; the contract suite tests both.
--
-- `entry` is the job's attempt if it was read already. `new_state` is its state if that changed,
-- false if it was deleted, and nil if it is as the key `state` has it.
local function expiry_of(fence, state, own, entry, new_state, ttl_ms, open_ms, due)
  if new_state == false then return ttl_ms end
  entry = entry or read_attempt(fence, own)
  if entry[2] > 0 then return ttl_ms end
  if new_state == nil and redis.call('HEXISTS', state, own) == 0 then return ttl_ms end
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
      local offset = tonumber(string.match(all[i + 1], '^%d+ (-?%d+) '))
      by_age[#by_age + 1] = {math.abs(offset), all[i]}
    end
  end
  table.sort(by_age, function(a, b) return a[1] < b[1] end)
  for i = 1, math.min(#by_age, excess + math.floor(limit / 4)) do
    redis.call('HDEL', fence, by_age[i][2])
  end
end

