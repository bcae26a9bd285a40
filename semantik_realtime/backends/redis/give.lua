-- Give the jobs of a holder whose deadline is over to the caller, under another name, which has a
-- deadline of its own. The worker process may come back and hold jobs under the old name.
--
-- KEYS  due, jobs of the holder, jobs of the other name (see hold.lua; may be the same)
-- ARGV  holder, other name, ms, keep_ms
-- Return {job, record, ...}; empty if another caller was faster, or the process came back.
local due, held, given, holder, name = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local deadline = redis.call('ZSCORE', due, holder)
if not deadline or tonumber(deadline) > now then return {} end
if redis.call('HLEN', held) == 0 then
  -- It has expired: nobody asked for it.
  redis.call('ZREM', due, holder)
  return {}
end
redis.call('ZADD', due, string.format('%d', now + ARGV[3]), name)
if name ~= holder then
  redis.call('ZREM', due, holder)
  redis.call('RENAME', held, given)
end
local keep = string.format('%d', ARGV[3] + ARGV[4])
redis.call('PEXPIRE', given, keep)
redis.call('PEXPIRE', due, keep)
return redis.call('HGETALL', given)
