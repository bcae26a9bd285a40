-- What the scripts that change a fence share; it stands in front of them.
--
-- An entry is "ATTEMPT PLACE TOKEN": the job's newest attempt, the offset at which it ended
-- (negative: it goes on, and has stood like this since then), and the token that claimed it.

local function read_standing(fence, job)
  local text = redis.call('HGET', fence, job)
  local attempt, place, token = string.match(text or '0 0 ', '^(%d+) (-?%d+) (.*)$')
  return {tonumber(attempt), tonumber(place), token}
end

local function write_standing(fence, job, standing)
  redis.call('HSET', fence, job,
    string.format('%d %d %s', standing[1], standing[2], standing[3]))
end

-- Jobs without a state (deleted, or only claimed) take no key, so no key ever makes room for
-- them: of more than "limit" the oldest go, a quarter at once.
local function forget_stateless(fence, state, limit)
  local excess = redis.call('HLEN', fence) - redis.call('HLEN', state) - limit
  if excess <= 0 then return end
  local has_state, by_age = {}, {}
  for _, key in ipairs(redis.call('HKEYS', state)) do has_state[key] = true end
  local all = redis.call('HGETALL', fence)
  for i = 1, #all, 2 do
    if not has_state[all[i]] then
      local place = tonumber(string.match(all[i + 1], '^%d+ (-?%d+) '))
      by_age[#by_age + 1] = {math.abs(place), all[i]}
    end
  end
  table.sort(by_age, function(a, b) return a[1] < b[1] end)
  for i = 1, math.min(#by_age, excess + math.floor(limit / 4)) do
    redis.call('HDEL', fence, by_age[i][2])
  end
end

